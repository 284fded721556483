"""vLLM on AWS Neuron: what is compiled, what the servers are started with, and what a node is asked."""
