"""Results in MLflow: what a measurement is called there, a spool that loses none, and where it goes."""
