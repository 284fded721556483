"""The network cards of EC2 instances."""

from __future__ import annotations

CARDS: dict[str, tuple[int, int]] = {
    "c5n.18xlarge": (1, 100),
    "g4dn.12xlarge": (1, 50),
    "g4dn.metal": (1, 100),
    "g5.12xlarge": (1, 40),
    "g5.24xlarge": (1, 50),
    "g5.48xlarge": (1, 100),
    "g6.12xlarge": (1, 40),
    "g6.24xlarge": (1, 50),
    "g6.48xlarge": (1, 100),
    "g6e.12xlarge": (1, 100),
    "g6e.24xlarge": (2, 100),
    "g6e.48xlarge": (4, 100),
    "p3dn.24xlarge": (1, 100),
    "p4d.24xlarge": (4, 100),
    "p4de.24xlarge": (4, 100),
    "p5.48xlarge": (32, 100),
    "p5e.48xlarge": (32, 100),
    "p5en.48xlarge": (16, 200),
    "p6-b200.48xlarge": (8, 400),
    "trn1.32xlarge": (8, 100),
    "trn1n.32xlarge": (16, 100),
    "trn2.48xlarge": (16, 200),
}
"""Network cards of EC2 instances, and the Gbit/s of one (EC2 User Guide, network specifications). An
endpoint of a tool uses one card."""
