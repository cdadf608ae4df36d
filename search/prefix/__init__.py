"""Running many subnets whose beginnings agree: pieces, the tree of their chains, and what each piece depends on."""
