"""Samples of public data sets of about 30 lines, generated in the layouts that their publishers document.

Every sample has five users (1 to 5) and six items (1 to 6), of which number 6 occurs in no interaction and number 5 has
no row in the file of items; user n has the items 1 to 5 in the order that begins with n.
"""

import json
import pathlib
from collections.abc import Callable, Iterator

USERS, RATED = 5, 5


def interactions() -> Iterator[tuple[int, int, int]]:
    """User, item and a number that grows from one interaction to the next."""
    for position in range(RATED):
        for user in range(1, USERS + 1):
            yield user, (user + position - 1) % RATED + 1, position * USERS + user


def _write(path: pathlib.Path, lines: list[str], encoding: str = "utf-8") -> str:
    path.write_bytes("".join(line + "\n" for line in lines).encode(encoding))
    return str(path)


def movielens_1m(folder: pathlib.Path) -> list[str]:
    """README of MovieLens-1M: `::` between the fields, ISO-8859-1, no header; age and occupation are codes."""
    ratings = [f"{user}::{item}::{item % 5 + 1}::{978300000 + n}" for user, item, n in interactions()]
    movies = [f"{n}::Misérables, Les ({1990 + n})::Drama|Children's" for n in (1, 2, 3, 4, 6)]
    users = [f"{n}::{'FM'[n % 2]}::{age}::{n}::4806{n}" for n, age in enumerate((1, 18, 25, 50, 56), start=1)]
    latin = "iso-8859-1"
    return [
        *("--ratings", _write(folder / "ratings.dat", ratings, latin)),
        *("--movies", _write(folder / "movies.dat", movies, latin)),
        *("--users", _write(folder / "users.dat", users, latin)),
    ]


def movielens_25m(folder: pathlib.Path) -> list[str]:
    """README of MovieLens-25M: CSV in UTF-8 with a header; a title with a comma stands in quotes."""
    ratings = [f"{user},{item},{item / 2},{1147880000 + n}" for user, item, n in interactions()]
    titles = ['"Misérables, Les (1995)"', "Toy Story (1995)", "Untitled", '"Matrix, The (1999)"']
    movies = [f"{n},{title},Drama|Sci-Fi" for n, title in enumerate(titles, start=1)]
    return [
        *("--ratings", _write(folder / "ratings.csv", ["userId,movieId,rating,timestamp", *ratings])),
        *("--movies", _write(folder / "movies.csv", ["movieId,title,genres", *movies, "6,X,(no genres listed)"])),
    ]


def amazon_2018(folder: pathlib.Path) -> list[str]:
    """The page of the 2018 release: JSON lines; category is one path, price a text with the currency."""
    reviews = [
        {
            "overall": float(item % 5 + 1),
            "verified": True,
            "reviewTime": "05 1, 2016",
            "reviewerID": f"A{user}",
            "asin": f"B{item}",
            "style": {"Size:": " One"},
            "reviewerName": "N",
            "reviewText": "Nice",
            "summary": "Nice",
            "unixReviewTime": 1462060800 + n,
        }
        for user, item, n in interactions()
    ]
    metas = [
        {
            "category": ["Beauty", "Hair Care"],
            "tech1": "",
            "description": ["Comb"],
            "title": f"Comb {n}",
            "also_buy": [],
            "brand": "OPI",
            "rank": "1,234 in Beauty",
            "main_cat": "All Beauty",
            "price": f"${n}.50",
            "asin": f"B{n}",
        }
        for n in (1, 2, 3, 4, 6)
    ]
    return [
        *("--reviews", _write(folder / "X_5.json", list(map(json.dumps, reviews)))),
        *("--meta", _write(folder / "meta_X.json", list(map(json.dumps, metas)))),
    ]


REES46_HEADER = "event_time,event_type,product_id,category_id,category_code,brand,price,user_id,user_session"


def rees46(folder: pathlib.Path) -> list[str]:
    """The page of the data set: CSV with a header, a file a month; category_code and brand may be empty."""
    types = ("view", "cart", "remove_from_cart", "purchase", "view")
    months: dict[str, list[str]] = {"10": [], "11": []}
    for user, item, n in interactions():
        known = "electronics.audio.headphone,jbl" if item < 5 else ","
        month = "10" if n <= 15 else "11"
        months[month].append(
            f"2019-{month}-01 00:00:{n:02} UTC,{types[item - 1]},{item},20{item},{known},{item}.99,{user},26dd6e6e"
        )
    files = [
        _write(folder / name, [REES46_HEADER, *months[month]])
        for name, month in (("2019-Oct.csv", "10"), ("2019-Nov.csv", "11"))
    ]
    return ["--events", *files]


HM_ARTICLES = (
    "article_id,product_code,prod_name,product_type_no,product_type_name,product_group_name,graphical_appearance_no,"
    "graphical_appearance_name,colour_group_code,colour_group_name,perceived_colour_value_id,"
    "perceived_colour_value_name,perceived_colour_master_id,perceived_colour_master_name,department_no,department_name,"
    "index_code,index_name,index_group_no,index_group_name,section_no,section_name,garment_group_no,"
    "garment_group_name,detail_desc"
)


def hm(folder: pathlib.Path) -> list[str]:
    """The page of the data set: three CSV files; times are days, and an article may stand twice on a day."""
    bought = [
        f"2018-09-{20 + n // 6},c{user},010877501{item},0.0{n:02},{1 + n % 2}" for user, item, n in interactions()
    ]
    bought.insert(1, bought[0])
    articles = [
        f"010877501{n},0108775,Strap top {n},253,Vest top,Garment Upper body,1010016,Solid,9,Black,4,Dark,5,Black,1676,"
        f'Jersey Basic,A,Ladieswear,1,Ladieswear,16,Womens Everyday Basics,1002,Jersey Basic,"Jersey top, narrow"'
        for n in (1, 2, 3, 4, 6)
    ]
    customers = [
        f"c{n},{flag},{flag},ACTIVE,Regularly,{age},52043ee2"
        for n, flag, age in ((1, "1.0", "24.0"), (2, "", ""), (3, "1.0", "31.0"), (5, "", "50.0"), (6, "", "20.0"))
    ]
    head = "customer_id,FN,Active,club_member_status,fashion_news_frequency,age,postal_code"
    return [
        *("--transactions", _write(folder / "t.csv", ["t_dat,customer_id,article_id,price,sales_channel_id", *bought])),
        *("--articles", _write(folder / "articles.csv", [HM_ARTICLES, *articles])),
        *("--customers", _write(folder / "customers.csv", [head, *customers])),
    ]


def recbole(folder: pathlib.Path) -> list[str]:
    """RecBole's page on atomic files: tabs, typed headers, sequences with blanks."""
    interaction = [f"{item}\t{user}\t{item % 5 + 1}\t{881250000 + n}.0" for user, item, n in interactions()]
    item = [f'{n}\tSong "{n}"\trock pop\t{n}.5' for n in (1, 2, 3, 4, 6)]
    user = [f"{n}\t2{n}\tM" for n in range(1, 6)]
    head = "item_id:token\tuser_id:token\trating:float\ttimestamp:float"
    return [
        *("--inter", _write(folder / "x.inter", [head, *interaction])),
        *("--item", _write(folder / "x.item", ["item_id:token\tname:token_seq\tgenre:token_seq\tloud:float", *item])),
        *("--user", _write(folder / "x.user", ["user_id:token\tage:token\tgender:token", *user])),
    ]


SAMPLES: dict[str, Callable[[pathlib.Path], list[str]]] = {
    "movielens-1m": movielens_1m,
    "movielens-25m": movielens_25m,
    "amazon-2018": amazon_2018,
    "rees46": rees46,
    "hm": hm,
    "recbole": recbole,
}
"""By data set: writes the sample into a folder and returns the options of `sllmr data`."""
