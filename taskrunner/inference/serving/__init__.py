"""From a description of a vLLM server to its command, environment, and how it is known to be ready or
broken.
"""

from .description import Refused, Server
from .launch import FAIL_ON, READY_TIMEOUT, Launch, launch, service

__all__ = ["FAIL_ON", "READY_TIMEOUT", "Launch", "Refused", "Server", "launch", "service"]
