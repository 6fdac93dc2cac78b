"""What crosses borders: named variables, the simulation store, loaders, model files, results. Knows no other room."""
