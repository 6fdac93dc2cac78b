"""What makes estimators robust: the Fisher information of q(theta | x) in x, and additions to the objective that lower it."""
