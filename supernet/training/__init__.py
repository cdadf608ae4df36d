"""Training: the loop and the step, the methods that choose a step's subnets, plain models, and the images."""
