"The comparison: plain training against each method, on the same images, with the same budget"
