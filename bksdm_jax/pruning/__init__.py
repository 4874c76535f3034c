"""Students: removal plans, presets and initial weights."""
