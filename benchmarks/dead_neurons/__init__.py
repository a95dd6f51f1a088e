"""Do ReLU and dropout kill units? The study: nets by the hundred on MNIST, and the page that they make."""
