"""LeakageGuard: stops the run if a validation or test interaction reached anything that training reads."""
