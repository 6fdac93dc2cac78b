# A noisy line, for every row of theta.csv: Rscript regression.R THETA SEED OUTPUT
arguments <- commandArgs(trailingOnly = TRUE)
theta <- read.csv(arguments[1])
set.seed(as.integer(arguments[2]))
at <- seq(-1, 1, length.out = 8)
y <- t(apply(theta, 1, function(row) row["intercept"] + row["slope"] * at + rnorm(8, sd = 0.2)))
write.table(y, arguments[3], sep = ",", row.names = FALSE, col.names = FALSE)
