"""AWS beside reaching instances: what a stack has made, and whether an account can make one."""
