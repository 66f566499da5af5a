"""TFX's ExampleValidator, made to stop the run."""
