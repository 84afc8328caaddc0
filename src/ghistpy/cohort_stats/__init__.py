"""Statistics of patients: survival, outcome, differential state; arrays in, arrays and small named results out."""
