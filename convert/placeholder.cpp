namespace cinch {}
