"""The training methods: which subnets a step runs, and what each of them learns from."""
