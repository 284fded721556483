"""What ibv_devinfo prints: the RDMA devices of a node and the state of their ports."""

from __future__ import annotations

from typing import Any

from .reading import NotAResult, Parsed, lines_of, record


def ibv_devinfo(text: str) -> Parsed:
    """The devices with their members. Raises NotAResult."""
    devices: list[dict[str, Any]] = []
    for line in lines_of(text):
        name, separator, value = (part.strip() for part in line.partition(":"))
        if name == "hca_id":
            devices.append({"name": value, "ports": []})
        elif not devices:
            if line.strip():
                raise NotAResult(line.strip())
        elif name == "port" and separator:
            devices[-1]["ports"].append({"port": value})
        elif separator and value:
            (devices[-1]["ports"][-1] if devices[-1]["ports"] else devices[-1])[name] = value
    if not devices or not all(device["ports"] and "link_layer" in device["ports"][-1] for device in devices):
        raise NotAResult("there is no device in it" if not devices else "its last device is cut off")
    return record("ibv_devinfo", devices=devices)
