"""The Triton kernels. Imported only where they can run: `import fusedact` needs no Triton."""
