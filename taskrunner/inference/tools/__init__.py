"""What the tools below the servers print, read: one module for each tool, the standard library only."""
