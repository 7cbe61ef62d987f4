"""The machine: its accelerators, its CPUs, and functions captured as graphs."""
