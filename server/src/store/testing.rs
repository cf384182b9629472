//! Databases for tests: a SQLite file, or a database in a private Postgres. The Postgres is started once for the whole test program, has its own
//! directory and socket, and ends with the program, however that ends. Without Postgres the tests fail and say what to install.

use crate::{
    follow::Cluster,
    store::{self, DatabaseUrl, Missing, Store, postgres::connect::Hosts},
};
use std::{
    io::{BufRead, BufReader},
    os::unix::{
        fs::{MetadataExt, chown},
        process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

const MISSING: &str = "these tests need Postgres: install the package `postgresql` (initdb and postgres in /usr/lib/postgresql/*/bin or in PATH)";

/// An empty database of one test.
pub(crate) struct Database {
    pub(crate) url: DatabaseUrl,
    _directory: Option<tempfile::TempDir>,
}

impl Database {
    pub(crate) fn sqlite() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let url = DatabaseUrl::Sqlite(directory.path().join("holdfast.db"));
        Self { url, _directory: Some(directory) }
    }

    /// The one of a server of the session tests.
    pub(crate) fn at(directory: &Path) -> Self {
        Self { url: DatabaseUrl::Sqlite(directory.join("holdfast.db")), _directory: None }
    }

    pub(crate) async fn postgres() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let server = tokio::task::spawn_blocking(PrivatePostgres::shared).await.unwrap();
        let name = format!("test_{}", NEXT.fetch_add(1, Relaxed));
        server.database("postgres").sql(&format!("CREATE DATABASE {name}")).await;
        server.database(&name)
    }

    pub(crate) async fn open(&self) -> Arc<dyn Store> {
        store::open(&self.url, Missing::Create).await.unwrap()
    }

    /// One server's view of the cluster in this database.
    pub(crate) async fn cluster(&self) -> Cluster {
        Cluster::open(self.open().await).await.unwrap()
    }

    /// Whether the file of the cluster's table, as it is on disk, has these bytes; SQLite's write-ahead log counts.
    pub(crate) async fn file_holds(&self, bytes: &[u8]) -> bool {
        let has = |file: &[u8]| file.windows(bytes.len()).any(|window| window == bytes);
        match &self.url {
            DatabaseUrl::Sqlite(path) => {
                let log = path.with_extension("db-wal");
                [path, &log].iter().any(|path| has(&std::fs::read(path).unwrap_or_default()))
            }
            DatabaseUrl::Postgres(target) => {
                let client = Hosts::new(target).unwrap().connect_driven().await.unwrap();
                client.batch_execute("SET statement_timeout = 0").await.unwrap();
                client.batch_execute("CHECKPOINT").await.unwrap();
                let file = "SELECT pg_read_binary_file(pg_relation_filepath('cluster'))";
                has(client.query_one(file, &[]).await.unwrap().get(0))
            }
        }
    }

    /// Changes the database behind the servers' backs.
    pub(crate) async fn sql(&self, statements: &str) {
        match &self.url {
            DatabaseUrl::Sqlite(path) => {
                rusqlite::Connection::open(path).unwrap().execute_batch(statements).unwrap();
            }
            DatabaseUrl::Postgres(target) => {
                let client = Hosts::new(target).unwrap().connect_driven().await.unwrap();
                client.batch_execute(statements).await.unwrap();
            }
        }
    }

    /// Keeps a copy of the cluster, as a backup would.
    pub(crate) async fn copy(&self) {
        self.sql(&for_each_table("DROP TABLE IF EXISTS kept_{}; CREATE TABLE kept_{} AS SELECT * FROM {};"))
            .await;
    }

    /// The database is as it was when it was copied, to the last row.
    pub(crate) async fn restore_copy(&self) {
        let tables = for_each_table("DELETE FROM {}; INSERT INTO {} SELECT * FROM kept_{};");
        self.sql(&format!("BEGIN; {tables} COMMIT;")).await;
    }

    pub(crate) fn is_sqlite(&self) -> bool {
        matches!(self.url, DatabaseUrl::Sqlite(_))
    }

    /// Of a Postgres database: ends every connection to it, and lets none in until told otherwise.
    pub(crate) async fn cut_off(&self, is_cut: bool) {
        self.reset(&format!("ALLOW_CONNECTIONS {}", !is_cut)).await;
    }

    /// Of a Postgres database: ends every connection to it; later ones may read alone, until told otherwise.
    pub(crate) async fn demote(&self, is_demoted: bool) {
        self.reset(&format!("SET default_transaction_read_only = {is_demoted}")).await;
    }

    async fn reset(&self, alteration: &str) {
        let name = self.name();
        let statements = format!(
            "ALTER DATABASE {name} {alteration};
             SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'"
        );
        PrivatePostgres::shared().database("postgres").sql(&statements).await;
    }

    fn name(&self) -> &str {
        let DatabaseUrl::Postgres(target) = &self.url else { panic!("a file is no Postgres") };
        target.config.get_dbname().unwrap()
    }

    /// The same database, behind another host in the list.
    pub(crate) fn url_behind(&self, host: &str) -> DatabaseUrl {
        PrivatePostgres::shared().url(&format!("{host},"), self.name())
    }

    /// Within which a change has to be seen by another server.
    pub(crate) fn reach(&self) -> Duration {
        match &self.url {
            DatabaseUrl::Sqlite(_) => Duration::from_millis(250),
            DatabaseUrl::Postgres(_) => Duration::from_millis(100),
        }
    }
}

fn for_each_table(statements: &str) -> String {
    let tables = ["cluster", "nodes", "setup_keys", "removals", "changes", "recovery", "settings", "roots"];
    tables.map(|table| statements.replace("{}", table)).join(" ")
}

/// Waits for a condition; how long it may take is bounded.
pub(crate) async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !holds().await {
        assert!(Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

struct PrivatePostgres {
    directory: PathBuf,
    /// Its input is closed when this program ends: it then stops Postgres and removes the directory.
    _shell: Child,
}

impl PrivatePostgres {
    fn shared() -> &'static Self {
        static SHARED: OnceLock<PrivatePostgres> = OnceLock::new();
        SHARED.get_or_init(Self::start)
    }

    fn start() -> Self {
        let programs = programs();
        let directory = tempfile::Builder::new().prefix("holdfast-pg-").tempdir().unwrap().keep();
        let script = r#"
            trap '' INT TERM
            trap 'kill -QUIT $server 2>/dev/null; wait $server; cd /; rm -rf "$DIR"' EXIT
            "$BIN/initdb" -D "$DIR/data" -U test -A trust -E UTF8 --no-locale --no-sync >"$DIR/initdb.txt" 2>&1 ||
                { cat "$DIR/initdb.txt"; exit 1; }
            "$BIN/postgres" -D "$DIR/data" -k "$DIR" -c listen_addresses= -c fsync=on -c shared_buffers=32MB \
                -c max_connections=400 >"$DIR/postgres.txt" 2>&1 &
            server=$!
            until "$BIN/psql" -h "$DIR" -U test -d postgres -qc '' 2>/dev/null; do
                kill -0 $server 2>/dev/null || { cat "$DIR/postgres.txt"; exit 1; }
                sleep 0.05
            done
            echo ready
            read -r _
        "#;
        let mut command = Command::new("sh");
        command.args(["-c", script]).env("DIR", &directory).env("BIN", programs).current_dir(&directory);
        as_postgres(&mut command, &directory);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut said = String::new();
        for line in BufReader::new(child.stdout.take().unwrap()).lines() {
            let line = line.unwrap();
            if line == "ready" {
                return Self { directory, _shell: child };
            }
            said = format!("{said}{line}\n");
        }
        child.wait().unwrap();
        panic!("the private Postgres did not start; {MISSING}: {said}");
    }

    fn database(&self, name: &str) -> Database {
        Database { url: self.url("", name), _directory: None }
    }

    /// `before`: hosts that come first, with a comma.
    fn url(&self, before: &str, name: &str) -> DatabaseUrl {
        let host = self.directory.to_str().unwrap().replace('/', "%2F");
        format!("postgres://test@{before}{host}:5432/{name}").parse().unwrap()
    }
}

fn programs() -> PathBuf {
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut found: Vec<PathBuf> = versions.map(|version| version.path().join("bin")).collect();
    found.sort();
    let path = std::env::var_os("PATH").unwrap_or_default();
    let candidates = found.into_iter().rev().chain(std::env::split_paths(&path));
    candidates.into_iter().find(|directory| directory.join("initdb").is_file()).expect(MISSING)
}

/// Postgres does not run as root.
fn as_postgres(command: &mut Command, directory: &Path) {
    if std::fs::metadata(directory).unwrap().uid() != 0 {
        return;
    }
    let users = std::fs::read_to_string("/etc/passwd").unwrap();
    let user = users.lines().find_map(|line| line.strip_prefix("postgres:")).expect(MISSING);
    let mut ids = user.split(':').skip(1).map(|id| id.parse::<u32>().unwrap());
    let (uid, gid) = (ids.next().unwrap(), ids.next().unwrap());
    chown(directory, Some(uid), Some(gid)).unwrap();
    command.uid(uid).gid(gid);
}
