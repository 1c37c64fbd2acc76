"""What the library costs: plain commands that print their figures and write them to `results/`."""
