"""What every operator stands on: argument checks, rates, random states, the compiled extension."""
