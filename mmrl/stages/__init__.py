"""What one step of a stage does: one file per kind of stage; an rl stage collects scored samples (`collect`), then learns from them (`rl`)."""
