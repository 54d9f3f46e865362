"""What benchmarks and models consist of, where they are on this machine, and fetching them from the Hub."""
