"""Exit 0 when a folder holds the whole tiny model; the standard library is enough for that."""

import json
import os
import struct
import sys


def main(folder):
    """Compare the sizes that the files promise with what is there; returns the exit status."""
    with open(os.path.join(folder, "config.json")) as file:
        config = json.load(file)
    with open(os.path.join(folder, "tokenizer.json")) as file:
        vocabulary = json.load(file)["model"]["vocab"]
    weights = os.path.join(folder, "model.safetensors")
    with open(weights, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    whole = 8 + length + max(ends) == os.path.getsize(weights)
    right = config["model_type"] == "qwen2" and config["vocab_size"] == len(vocabulary)
    return int(not (whole and right))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
