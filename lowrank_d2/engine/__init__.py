"""Training, prediction and what the command lines share. Import the modules: this one loads nothing."""
