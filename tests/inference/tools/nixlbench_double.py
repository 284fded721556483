"""A nixlbench of two processes, for machines without NIXL's sources. Like the real one (1.4, ASIO runtime):

who can bind the address has rank 0, waits for whoever connects, takes that for its peer, and prints the rows;
the other one connects at once, and neither waits longer than some seconds. It moves the bytes over TCP.
"""

from __future__ import annotations

import argparse
import socket
import sys
import time

NAMES = (
    "backend op_type scheme mode initiator_seg_type target_seg_type total_buffer_size start_block_size max_block_size"
    " start_batch_size max_batch_size num_iter warmup_iter large_blk_iter_ftr num_threads num_initiator_dev"
    " num_target_dev runtime_type asio_address asio_port"
)
PATIENCE_S = 5.0
COLUMNS = "Block Size (B)      Batch Size     B/W (GB/Sec)   Avg Lat. (us)  Avg Prep (us)  P99 Prep (us)"


def main() -> int:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    for name in NAMES.split():
        parser.add_argument("--" + name)
    said, unknown = parser.parse_known_args()
    if unknown:
        print(f"ERROR: unknown command line flag '{unknown[0].lstrip('-')}'", file=sys.stderr)
        return 1
    print(f"Using address {said.asio_address} port {said.asio_port} for ASIO runtime", flush=True)
    if said.backend != "UCX":
        print("NIXL: createBackend failed! (NIXL_ERR_NOT_FOUND)", file=sys.stderr)
        return 1
    block, batch, count = int(said.max_block_size), int(said.max_batch_size), int(said.num_iter)
    if block * batch > int(said.total_buffer_size) // int(said.num_initiator_dev):
        print("Incorrect buffer size configuration for Initiator", file=sys.stderr)
        return 1
    where, moved = (said.asio_address, int(said.asio_port)), block * batch * count
    try:
        listener = socket.create_server(where)
    except OSError:
        print("ASIO runtime bind/listen error -- using connect() instead")
        with socket.create_connection(where, PATIENCE_S) as peer:
            _receive(peer, moved)
        print("Init nixl worker, dev all rank 1, type target, hostname vm")
        return 0
    listener.settimeout(PATIENCE_S)
    try:
        peer = listener.accept()[0]
    except TimeoutError:
        print("terminate called: ASIO Connection timeout", file=sys.stderr)
        return 134
    for name in NAMES.split():
        print(f"{name.replace('_', ' ').capitalize()} (--{name}=N) : {getattr(said, name)}")
    with peer:
        began = time.perf_counter()
        for _ in range(count):
            peer.sendall(bytes(block * batch))
        peer.recv(1)
        took = time.perf_counter() - began
    print(COLUMNS)
    print(f"{block}  {batch}  {moved / took / 1e9:f}  {took / count / batch * 1e6:.1f}  35.0  35.0")
    return 0


def _receive(peer: socket.socket, size: int) -> None:
    while size > 0:
        data = peer.recv(1 << 20)
        if not data:
            break
        size -= len(data)
    peer.sendall(b"!")


if __name__ == "__main__":
    sys.exit(main())
