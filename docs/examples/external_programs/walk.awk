# A random walk with drift, for every row of theta.csv: awk -v seed=SEED -f walk.awk theta.csv
# Prints where each walk ends and how far it strayed.
BEGIN { FS = ","; srand(seed); print "last,farthest" }
NR == 1 { next }
{
    place = farthest = 0
    for (step = 0; step < 100; step++) {
        place += $1 + $2 * sqrt(-2 * log(1 - rand())) * cos(6.283185307179586 * rand())
        if (place * place > farthest * farthest) farthest = place
    }
    printf "%.17g,%.17g\n", place, farthest
}
