"""Small examples that demonstrations, benchmarks and tests share: checkpoints and a pipeline of components."""
