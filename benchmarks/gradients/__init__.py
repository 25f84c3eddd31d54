"""How good estimators of the policy gradient are, and how much their advantages vary."""
