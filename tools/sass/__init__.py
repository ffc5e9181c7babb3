"""Compiled CUDA kernels, run without a GPU. Each file imports only files above it in this list.

toolkit.py   where the programs of the CUDA toolkit are
assembly.py  instructions and operands, read from the text of nvdisasm
cubin.py     the kernels of a cubin
block.py     a block of threads: registers, predicates and memory
moves.py, integers.py, floats.py   what instructions compute
threads.py   which instruction each thread executes next
launch.py    launches, as the project's host code makes them (recorder.cu, runtime.cpp)
"""
