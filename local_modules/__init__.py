"""The parts of the recipe. Modules in this folder are shared; a subfolder holds those
of one task."""
