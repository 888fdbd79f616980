"""The networks: specification, blocks, head, builder, and the architecture YAMLs."""
