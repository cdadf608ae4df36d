"""Search by blockwise distillation (DNA): cutting into blocks, training and rating them, putting paths together."""
