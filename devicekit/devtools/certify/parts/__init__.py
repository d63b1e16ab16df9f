"""One module for each part: a function ``run(ground, findings)`` that writes what it finds as it finds it."""
