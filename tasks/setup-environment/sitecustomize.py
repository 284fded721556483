"""Two fixes for vLLM + NIXL on a CPU; put this folder on PYTHONPATH.

1. Linux gives AMX tile registers only to a process that asked for them. vLLM's attention kernel uses
   them without asking, so a decode server (which never runs the large matrix product that would have
   asked) dies with SIGILL on a CPU with AMX. Ask here; a CPU or kernel without AMX answers an error.
2. NIXL's Python API hard-codes pthrDelay=0: its UCX progress thread spins on a core. Set it to
   NIXL_PTHR_DELAY_US microseconds (default 1000).
"""

import ctypes
import importlib.abc
import importlib.machinery
import os
import platform
import sys

if sys.platform == "linux" and platform.machine() == "x86_64":
    SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA = 158, 0x1023, 18
    ctypes.CDLL(None).syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA)


class _NixlHook(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name not in ("nixl_cu12._bindings", "nixl_cu13._bindings"):
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        if spec is not None:
            load = spec.loader.exec_module

            def exec_module(module):
                load(module)
                base = module.nixlAgent

                class nixlAgent(base):
                    def __init__(self, name, config):
                        config.pthrDelay = int(os.environ.get("NIXL_PTHR_DELAY_US", "1000"))
                        super().__init__(name, config)

                module.nixlAgent = nixlAgent

            spec.loader.exec_module = exec_module
        return spec


sys.meta_path.insert(0, _NixlHook())
