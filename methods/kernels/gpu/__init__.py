"""The Triton paths of the kernels, which tokens on a GPU take.

NOT YET RUN ON A GPU: they pick what the plain loops pick in Triton's interpreter, and compile for an H200. How fast
they are has not been measured. `methods.kernels.paths.using("plain")` goes without them.
"""
