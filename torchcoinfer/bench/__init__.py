"""What the project is judged by: the demo, quality and kernel measurements. Peers run in the same process."""
