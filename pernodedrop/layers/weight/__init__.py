"""Weight noise, one regularizer a file: each wraps a layer and puts noise on its kernel. Read `per_node_drop` first."""
