"""The Triton paths of the kernels, for tokens on a GPU; HARNESS_TRITON=1 asks for them.

NOT YET RUN ON A GPU: they pick what the plain loops pick in Triton's interpreter, and compile for an H200. How fast
they are has not been measured, so nothing takes them by default.
"""
