"""The test bed on AWS: an MLflow server, and GPU nodes with EFA networking."""
