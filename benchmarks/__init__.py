"""What the library costs: plain commands that print their figures and write them to runs/benchmarks.

`results/` has those that the documentation states; `--out benchmarks/results` writes them anew.
"""
