"""Traces outside the process: files, data bases and logs."""

import logging
import sqlite3

from tests.hiding_places.places import Place, place


def n_lines(path):
    return len(path.read_text().splitlines())


def n_rows(path):
    connection = sqlite3.connect(path)
    try:
        return connection.execute("SELECT COUNT(*) FROM visits").fetchone()[0]
    finally:
        connection.close()


def connect(path):
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA synchronous=OFF")
    connection.execute("PRAGMA journal_mode=OFF")
    connection.execute("CREATE TABLE IF NOT EXISTS visits (level INTEGER)")
    return connection


@place("visits.csv", trace=("visits.csv", n_lines))
def file():
    class InFile(Place):
        n_visits = 0

        def count(self):
            self.n_visits += 1
            with open(self.folder / "visits.csv", "a") as rows:
                rows.write(f"{self.n_visits}\n")
            return self.n_visits

    return InFile


@place("best.txt")
def file_read_again():
    class InFile(Place):
        def set_up(self):
            (self.folder / "best.txt").write_text("0")

        def count(self):
            n_visits = int((self.folder / "best.txt").read_text()) + 1
            (self.folder / "best.txt").write_text(str(n_visits))
            return n_visits

    return InFile


@place("open.csv", "open_file", trace=("open.csv", n_lines))
def open_file():
    class InOpenFile(Place):
        n_visits = 0

        def set_up(self):
            self.open_file = open(self.folder / "open.csv", "a")

        def tear_down(self):
            self.open_file.close()

        def count(self):
            self.n_visits += 1
            self.open_file.write(f"{self.n_visits}\n")
            self.open_file.flush()
            return self.n_visits

    return InOpenFile


@place("visits.db", trace=("visits.db", n_rows))
def data_base():
    class InDataBase(Place):
        n_visits = 0

        def count(self):
            self.n_visits += 1
            connection = connect(self.folder / "visits.db")
            connection.execute("INSERT INTO visits VALUES (?)", (self.n_visits,))
            connection.close()
            return self.n_visits

    return InDataBase


@place("open.db", "connection", trace=("open.db", n_rows))
def open_data_base():
    class InDataBase(Place):
        def set_up(self):
            self.connection = connect(self.folder / "open.db")

        def tear_down(self):
            self.connection.close()

        def count(self):
            self.connection.execute("INSERT INTO visits VALUES (1)")
            return self.connection.execute("SELECT COUNT(*) FROM visits").fetchone()[0]

    return InDataBase


@place("visits.log", "hiding_places.log", trace=("visits.log", n_lines))
def log():
    logger = logging.getLogger("hiding_places.log")
    logger.propagate = False
    logger.setLevel(logging.INFO)

    class InLog(Place):
        n_visits = 0

        def set_up(self):
            self.tear_down()
            logger.addHandler(logging.FileHandler(self.folder / "visits.log", delay=True))

        def tear_down(self):
            for handler in list(logger.handlers):
                handler.close()
                logger.removeHandler(handler)

        def count(self):
            self.n_visits += 1
            logger.info("visit %d", self.n_visits)
            return self.n_visits

    return InLog
