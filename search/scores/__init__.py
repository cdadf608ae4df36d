"""What architectures are judged by: accuracy in the supernet, a teacher's view, or scores without training."""
