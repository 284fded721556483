"""What commands show: plain lines, JSON lines, and live views on a terminal."""
