//! The command line as scripts use it: the real program on a SQLite file, without a server running.
#![allow(clippy::unwrap_used, reason = "the helpers are of tests too")]

use proto::{key::NodeSecret, session::Facts, setup_key::SetupKey};
use serde_json::Value;
use server::{
    cluster::{Actor, Applicant, StoredRoot, enrol},
    follow::Cluster,
    store::{self, DatabaseUrl, Missing},
};
use std::process::{Command, Output};

struct Fixture {
    directory: tempfile::TempDir,
}

impl Fixture {
    /// An empty cluster.
    async fn new() -> Self {
        let fixture = Self { directory: tempfile::tempdir().unwrap() };
        fixture.cluster().await;
        fixture
    }

    fn url(&self) -> DatabaseUrl {
        DatabaseUrl::Sqlite(self.directory.path().join("holdfast.db"))
    }

    async fn cluster(&self) -> Cluster {
        Cluster::open(store::open(&self.url(), Missing::Create).await.unwrap()).await.unwrap()
    }

    async fn enrol(&self, key: &str, hostname: &str) {
        let applicant = Applicant {
            setup_key_hash: key.parse::<SetupKey>().unwrap().secret.hash(),
            node_key: NodeSecret::generate().unwrap().public(),
            facts: Facts { hostname: hostname.to_owned(), ..Facts::default() },
            endpoints: vec![],
        };
        let cluster = self.cluster().await;
        let entered = cluster.write(Actor::CommandLine, |state, now| enrol(state, now, &applicant));
        entered.await.unwrap();
    }

    fn run(&self, args: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_server"));
        let data_dir = self.directory.path();
        command.args(args).env_clear().env("HOLDFAST_DATA_DIR", data_dir).output().unwrap()
    }

    fn json(&self, args: &[&str]) -> Value {
        let output = self.run(&[args, &["--json"]].concat());
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    fn fails(&self, code: i32, args: &[&str], word: &str) {
        let output = self.run(args);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {said}");
        assert!(said.contains(word), "{args:?}: {said}");
        assert!(output.stdout.is_empty(), "{args:?}");
    }
}

#[tokio::test]
async fn a_setup_key_is_made_listed_without_its_secret_and_revoked() {
    let fixture = Fixture::new().await;
    let made = fixture.json(&["setup-key", "create", "--reusable", "--groups", "a,b", "--expires", "90"]);
    let key = made["key"].as_str().unwrap();
    assert!(key.parse::<SetupKey>().is_ok(), "{key}");
    assert_eq!(made["expires_unix_s"].as_u64().unwrap() - made["created_unix_s"].as_u64().unwrap(), 90);
    let listed = fixture.json(&["setup-key", "list"]);
    assert_eq!((&listed[0]["state"], &listed[0]["groups"][1]), (&"valid".into(), &"b".into()));
    assert!(!listed.to_string().contains(key.split('_').nth(1).unwrap()));
    let id = made["id"].to_string();
    assert_eq!(fixture.json(&["setup-key", "revoke", &id])["state"], "revoked");
    assert_eq!(fixture.json(&["setup-key", "list"])[0]["state"], "revoked");
    let plain = fixture.run(&["setup-key", "create"]);
    let stdout = String::from_utf8(plain.stdout).unwrap();
    assert!(stdout.trim().parse::<SetupKey>().is_ok(), "for scripts, the output is the key: {stdout}");
}

#[tokio::test]
async fn a_node_is_renamed_granted_expired_and_removed() {
    let fixture = Fixture::new().await;
    let key = fixture.json(&["setup-key", "create"])["key"].as_str().unwrap().to_owned();
    fixture.enrol(&key, "Web").await;
    let listed = fixture.json(&["node", "list"]);
    assert_eq!((&listed[0]["name"], &listed[0]["online"]), (&"web".into(), &false.into()));
    let address = listed[0]["addresses"][0].as_str().unwrap();
    assert_eq!(fixture.json(&["node", "rename", address, "db"])["name"], "db");
    assert_eq!(fixture.json(&["node", "allow-claim", "db", "10.0.0.0/8"])["claims"][0], "10.0.0.0/8");
    assert_eq!(fixture.json(&["node", "expire", "db"])["expired"], true);
    assert_eq!(fixture.json(&["node", "show", "1"])["name"], "db");
    fixture.json(&["node", "remove", "db"]);
    assert_eq!(fixture.json(&["node", "list"]), Value::Array(vec![]));
    fixture.fails(1, &["node", "remove", "db"], "no node db");
}

#[tokio::test]
async fn the_root_is_changed_shown_and_retired_and_the_old_secret_leaves_the_file() {
    let fixture = Fixture::new().await;
    let key = fixture.json(&["setup-key", "create"])["key"].as_str().unwrap().to_owned();
    fixture.enrol(&key, "laptop").await;
    let StoredRoot::Plain(old) = fixture.cluster().await.store().snapshot().await.unwrap().founding.root
    else {
        panic!("it is wrapped")
    };
    let holds_old = || {
        let files = std::fs::read_dir(fixture.directory.path()).unwrap();
        files
            .filter_map(|file| std::fs::read(file.unwrap().path()).ok())
            .any(|bytes| bytes.windows(32).any(|window| window == old.expose()))
    };
    assert!(holds_old());
    fixture.fails(1, &["root", "retire"], "nothing to retire");
    let first = fixture.json(&["root", "show"]);
    assert_eq!((&first["number"], &first["roots"][0]["memberships"]), (&0.into(), &1.into()));
    let rotated = fixture.json(&["root", "rotate"]);
    assert_ne!(rotated["root"], first["root"]);
    assert_eq!(rotated["roots"][1]["fingerprint"], first["root"]);
    assert_eq!((&rotated["to_sign_anew"], &rotated["unconfirmed"][0]), (&1.into(), &"laptop".into()));
    assert_eq!(fixture.json(&["status"])["cluster"], rotated["root"]);
    assert!(!holds_old(), "the former root's secret is still in the database's files");
    fixture.fails(1, &["root", "rotate"], "root retire");
    assert_eq!(fixture.json(&["root", "rotate", "--anyway"])["roots"].as_array().unwrap().len(), 3);
    fixture.fails(1, &["root", "retire"], "--force");
    let retired = fixture.json(&["root", "retire", "--force"]);
    assert_eq!((&retired["number"], &retired["roots"][0]["memberships"]), (&2.into(), &1.into()));
    assert_eq!(retired["roots"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn scripts_are_told_of_a_root_all_that_people_are() {
    let fixture = Fixture::new().await;
    let key = fixture.json(&["setup-key", "create", "--reusable"])["key"].as_str().unwrap().to_owned();
    fixture.enrol(&key, "laptop").await;
    let shown = fixture.json(&["root", "show"]);
    assert_eq!(shown["roots"][0]["since_unix_s"], Value::Null, "since the beginning");
    assert_eq!(
        (&shown["former_setup_keys"], &shown["unconfirmed"]),
        (&Value::Array(vec![]), &Value::Array(vec![]))
    );
    fixture.json(&["root", "rotate"]);
    let shown = fixture.json(&["root", "show"]);
    let [current, former] = shown["roots"].as_array().unwrap().as_slice() else { panic!("{shown}") };
    assert_eq!((&current["current"], &former["current"]), (&true.into(), &false.into()));
    assert!(current["since_unix_s"].is_u64() && current["fingerprint"] == shown["root"], "{shown}");
    assert_eq!((&current["memberships"], &former["memberships"]), (&0.into(), &1.into()));
    assert_eq!((&shown["nodes"], &shown["to_sign_anew"]), (&1.into(), &1.into()));
    assert_eq!((&shown["unconfirmed"][0], &shown["former_setup_keys"][0]), (&"laptop".into(), &1.into()));
    assert_eq!(shown["not_signable_anew"], Value::Array(vec![]));
}

#[tokio::test]
async fn status_is_told_of_a_cluster_without_servers() {
    let fixture = Fixture::new().await;
    let status = fixture.json(&["status"]);
    assert_eq!((&status["revision"], &status["epoch"]), (&1.into(), &1.into()));
    assert_eq!((&status["database"]["kind"], &status["database"]["ok"]), (&"sqlite".into(), &true.into()));
    assert!(status["database"]["answer_ms"].is_u64(), "{status}");
    assert_eq!(
        (&status["servers"], &status["settings_differ"]),
        (&Value::Array(vec![]), &Value::Array(vec![]))
    );
    let text = String::from_utf8(fixture.run(&["status"]).stdout).unwrap();
    assert!(text.contains(status["cluster"].as_str().unwrap()) && text.contains("no server runs"), "{text}");
}

#[tokio::test]
async fn what_cannot_be_done_says_so_with_its_exit_code() {
    let fixture = Fixture::new().await;
    fixture.fails(2, &["frobnicate"], "frobnicate");
    fixture.fails(2, &["status", "--database", "mysql://me:hunter2@h/d"], "mysql");
    fixture.fails(2, &["setup-key", "create", "--expires", "soon"], "soon");
    fixture.fails(2, &["setup-key", "create", "--claims", "10/8"], "10/8");
    fixture.fails(1, &["setup-key", "create", "--claims", "100.64.0.0/16"], "overlay");
    fixture.fails(1, &["setup-key", "revoke", "7"], "no setup key 7");
    fixture.fails(1, &["node", "show", "nobody"], "nobody");
    fixture.fails(2, &["status", "--log-level", "x=y=z"], "log level");
    let elsewhere = format!("sqlite:{}/none.db", fixture.directory.path().display());
    fixture.fails(1, &["setup-key", "create", "--database", &elsewhere], "no cluster");
    assert!(!fixture.directory.path().join("none.db").exists(), "a mistyped path makes no database");
}

#[tokio::test]
async fn version_and_completion_need_no_database() {
    let fixture = Fixture { directory: tempfile::tempdir().unwrap() };
    let version = fixture.run(&["version"]);
    assert_eq!(String::from_utf8(version.stdout).unwrap(), format!("server {}\n", env!("CARGO_PKG_VERSION")));
    for shell in ["bash", "zsh", "fish"] {
        let script = String::from_utf8(fixture.run(&["completion", shell]).stdout).unwrap();
        assert!(script.contains("setup-key"), "{shell}");
    }
}

#[cfg(unix)]
#[test]
fn a_server_that_still_waits_for_its_database_ends_when_it_is_told_to() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let opening = std::fs::File::create(path("holdfast.db-lock")).unwrap();
    opening.lock().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_server"));
    command.args(["run", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"]);
    let mut server = command.env_clear().env("HOLDFAST_DATA_DIR", directory.path()).spawn().unwrap();
    // Made after it listens for signals, and before it opens the database.
    within_10_s("it has begun", || path("server-id").exists());
    assert!(Command::new("kill").arg(server.id().to_string()).status().unwrap().success());
    within_10_s("it has ended", || server.try_wait().unwrap().is_some());
    assert!(server.wait().unwrap().success());
}

#[cfg(unix)]
fn within_10_s(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while !holds() {
        assert!(std::time::Instant::now() < deadline, "never: {what}");
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
}

#[tokio::test]
async fn a_wrapped_root_needs_its_file_for_what_signs_and_for_nothing_else() {
    let fixture = Fixture::new().await;
    let path = |name: &str| fixture.directory.path().join(name).to_str().unwrap().to_owned();
    let (file, other) = (path("cluster.key"), path("other.key"));
    let setup_key = fixture.json(&["setup-key", "create"])["key"].as_str().unwrap().to_owned();
    fixture.enrol(&setup_key, "web").await;
    for file in [&file, &other] {
        assert!(fixture.run(&["cluster-key", "create", file]).status.success());
    }
    fixture.fails(1, &["cluster-key", "create", &file], "never overwritten");
    fixture.fails(1, &["cluster-key", "wrap"], "--cluster-key");
    fixture.fails(1, &["cluster-key", "wrap", "--cluster-key", &path("none.key")], "none.key");
    let seed = *fixture.cluster().await.state().root.secret().unwrap().expose();
    let seed_is_found = || {
        let content = |name: &str| std::fs::read(path(name)).unwrap_or_default();
        let files = [content("holdfast.db"), content("holdfast.db-wal")].concat();
        files.windows(32).any(|window| window == seed)
    };
    assert!(seed_is_found());
    assert!(fixture.run(&["cluster-key", "wrap", "--cluster-key", &file]).status.success());
    assert!(!seed_is_found(), "the old form is overwritten");
    assert!(fixture.run(&["cluster-key", "wrap", "--cluster-key", &file]).status.success(), "twice is once");
    fixture.fails(1, &["cluster-key", "wrap", "--cluster-key", &other], "does not open it");
    fixture.fails(1, &["run", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"], "--cluster-key");
    fixture.json(&["status"]);
    let made = fixture.json(&["setup-key", "create"])["id"].to_string();
    fixture.json(&["setup-key", "revoke", &made]);
    fixture.json(&["node", "rename", "web", "www"]);
    fixture.fails(1, &["node", "remove", "www"], "--cluster-key");
    fixture.fails(1, &["node", "remove", "www", "--cluster-key", &other], "does not open it");
    fixture.json(&["node", "allow-claim", "www", "10.0.0.0/8", "--cluster-key", &file]);
    assert!(fixture.run(&["cluster-key", "unwrap", "--cluster-key", &file]).status.success());
    fixture.fails(1, &["node", "remove", "www", "--cluster-key", &file], "cluster-key wrap");
    fixture.json(&["node", "remove", "www"]);
}

#[cfg(unix)]
#[test]
fn a_server_without_its_database_says_so_and_lets_no_agents_in() {
    use std::net::{TcpListener, TcpStream};
    let directory = tempfile::tempdir().unwrap();
    let free = || TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (database, control, admin) = (free(), free(), free());
    let mut command = Command::new(env!("CARGO_BIN_EXE_server"));
    command.args(["run", "--listen", &control.to_string(), "--admin-listen", &admin.to_string()]);
    command.env_clear().env("HOLDFAST_DATA_DIR", directory.path());
    command.env("HOLDFAST_DATABASE", format!("postgres://me:hunter2@{database}/mesh"));
    let log = std::fs::File::create(directory.path().join("log")).unwrap();
    let mut server = command.stderr(log).spawn().unwrap();
    let mut told = String::new();
    within_10_s("it says what it waits for", || {
        told = get(admin, "/readyz").unwrap_or_default();
        told.contains("refused")
    });
    assert!(told.starts_with("HTTP/1.1 503") && told.contains(r#""status":"not-ready""#), "{told}");
    told += &get(admin, "/healthz").unwrap();
    told += &get(admin, "/metrics").unwrap();
    assert!(TcpStream::connect(control).is_err(), "it listens for agents");
    assert!(Command::new("kill").arg(server.id().to_string()).status().unwrap().success());
    within_10_s("it has ended", || server.try_wait().unwrap().is_some());
    assert!(server.wait().unwrap().success());
    told += &std::fs::read_to_string(directory.path().join("log")).unwrap();
    assert_eq!(told.matches("not ready").count(), 1, "{told}");
    assert!(told.contains(&database.to_string()) && !told.contains("hunter2"), "{told}");
}

#[cfg(unix)]
fn get(admin: std::net::SocketAddr, path: &str) -> std::io::Result<String> {
    use std::io::{Read, Write};
    let mut stream = std::net::TcpStream::connect(admin)?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: server\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

#[tokio::test]
async fn a_backup_is_restored_elsewhere_and_replaces_nothing_unasked() {
    let fixture = Fixture::new().await;
    let path = |name: &str| fixture.directory.path().join(name).to_str().unwrap().to_owned();
    let (file, elsewhere) = (path("backup"), format!("sqlite:{}", path("new/directory/other.db")));
    let setup_key = fixture.json(&["setup-key", "create", "--reusable"])["key"].as_str().unwrap().to_owned();
    fixture.enrol(&setup_key, "web").await;
    let told = fixture.json(&["backup", &file]);
    assert_eq!((&told["nodes"], &told["root"], &told["epoch"]), (&1.into(), &"plain".into(), &1.into()));
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    }
    fixture.fails(1, &["backup", &file], "--force");
    assert!(fixture.run(&["backup", &file, "--force"]).status.success());
    let piped = fixture.run(&["backup", "-"]).stdout;
    assert!(piped.starts_with(b"{\"format\":\"holdfast-backup\""));
    fixture.fails(1, &["restore", &file], "--replace");
    let restored = fixture.json(&["restore", &file, "--database", &elsewhere]);
    assert!(restored["epoch"].as_u64() > Some(1) && restored["cluster"] == told["cluster"], "{restored}");
    let nodes = fixture.json(&["node", "list", "--database", &elsewhere]);
    assert_eq!(nodes, fixture.json(&["node", "list"]));
    let again = fixture.json(&["restore", &file, "--database", &elsewhere, "--replace"]);
    assert!(again["epoch"].as_u64() > restored["epoch"].as_u64(), "each restore is an epoch: {again}");
    let whole = std::fs::read(&file).unwrap();
    let bad = path("bad");
    let (fresh, cut) = (format!("sqlite:{}", path("fresh.db")), &whole[..whole.len() / 2]);
    for (content, word) in
        [(cut, "cut short"), (&b"hello\n"[..], "no Holdfast backup"), (&b""[..], "no Holdfast")]
    {
        std::fs::write(&bad, content).unwrap();
        fixture.fails(1, &["restore", &bad, "--database", &fresh], word);
    }
    fixture.fails(1, &["restore", &path("none"), "--database", &fresh], "none");
    assert!(!fixture.directory.path().join("fresh.db").exists(), "a bad backup makes no database");
}

#[tokio::test]
async fn a_migrated_cluster_takes_changes_at_its_new_place_alone() {
    let fixture = Fixture::new().await;
    let setup_key = fixture.json(&["setup-key", "create", "--reusable"])["key"].as_str().unwrap().to_owned();
    fixture.enrol(&setup_key, "web").await;
    let url = |name: &str| format!("sqlite:{}", fixture.directory.path().join(name).display());
    let (from, to) = (url("holdfast.db"), url("new.db"));
    fixture.fails(1, &["migrate", &from, &from], "both");
    fixture.fails(2, &["migrate", "mysql://me:hunter2@h/d", &to], "mysql");
    fixture.fails(2, &["migrate", &from], "TO");
    let before = fixture.json(&["status"]);
    let moved = fixture.run(&["migrate", &from, &to]);
    assert!(moved.status.success(), "{}", String::from_utf8_lossy(&moved.stderr));
    let after = fixture.json(&["status", "--database", &to]);
    for field in ["cluster", "epoch", "revision", "nodes"] {
        assert_eq!(before[field], after[field], "{field}");
    }
    fixture.fails(1, &["node", "rename", "web", "old"], "new.db");
    fixture.fails(1, &["run", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"], "new.db");
    assert_eq!(fixture.json(&["node", "list"])[0]["name"], "web", "it is still read");
    assert!(fixture.run(&["migrate", &from, &to]).status.success(), "again is the same");
    fixture.fails(1, &["migrate", &from, &url("third.db")], "moved to");
    fixture.json(&["node", "rename", "web", "new", "--database", &to]);
    fixture.fails(1, &["migrate", &from, &to, "--undo"], "was changed since");
    fixture.json(&["node", "rename", "new", "newer", "--database", &to]);
    assert!(fixture.run(&["migrate", &from, "--undo"]).status.success());
    fixture.json(&["node", "rename", "web", "old"]);
}

#[tokio::test]
async fn a_move_is_taken_back_and_the_copy_then_takes_no_changes() {
    let fixture = Fixture::new().await;
    let url = |name: &str| format!("sqlite:{}", fixture.directory.path().join(name).display());
    let (from, to) = (url("holdfast.db"), url("new.db"));
    assert!(fixture.run(&["migrate", &from, &to]).status.success());
    assert!(fixture.run(&["migrate", &from, &to, "--undo"]).status.success());
    fixture.json(&["setup-key", "create"]);
    fixture.fails(1, &["setup-key", "create", "--database", &to], "moved to");
}
