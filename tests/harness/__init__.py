"""What the integration and interop tests share: daemons, images, proofs that nothing is left."""
