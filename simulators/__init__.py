"""Forward models, priors, and campaigns that fill a store."""
