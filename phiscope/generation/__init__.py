"""Generation: options, sampling, stopping and the one decoding loop, the engine's."""
