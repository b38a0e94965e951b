"""Every strategy that Flower has, on scikit-learn's digits."""
