//! The harness tried on a pretend server of plain threads, which knows nothing of
//! handover: what fails here is the harness.
#![expect(clippy::print_stdout, clippy::exit, reason = "a test and a subject of its own")]

use std::net::{SocketAddr, TcpListener};
use std::process::{Command as Process, ExitCode, Stdio};
use std::time::Duration;

use handover_conformance::client::Load;
use handover_conformance::hygiene::{self, Belongings};
use handover_conformance::signal::{Exit, Signal};
use handover_conformance::{
    Case, Context, Doing, Failure, Generation, Need, Scenario, Suite, ensure, http, start_beside,
};

const SOON: Duration = Duration::from_secs(30);
const DEADLINE: Duration = Duration::from_secs(180);

fn main() -> ExitCode {
    let case = |name, clause, run| Case { name, clause, deadline: DEADLINE, needs: &[], run };
    const NEVER: Need = Need { what: "a machine that does not exist", is_met: || false };
    Suite::new(
        "harness",
        [
            case(
                "load::clients_are_served",
                "a server that stays loses nothing",
                clients_are_served,
            ),
            case(
                "load::a_killed_server_is_noticed",
                "a kill shows in the report",
                a_kill_is_noticed,
            ),
            case("subject::a_command_reaches_it", "commands travel to a generation", a_command),
            case("subject::an_exit_status_is_known", "the end of a subject is an event", an_exit),
            case("subject::a_grandchild_is_adopted", "an orphan is seen and buried", a_grandchild),
            case("subject::a_broken_program_is_not_started", "a program can be broken", broken),
            case("hygiene::belongings_are_compared", "descriptors are listed", belongings),
            case("runner::a_hang_is_ended", "a case that hangs fails, its processes die", a_hang),
            case(
                "runner::a_killed_runner_leaves_nothing",
                "no subject outlives a runner",
                lifeline,
            ),
            Case {
                name: "runner::an_unmet_need_skips",
                clause: "a case that cannot run here is skipped when it is listed",
                deadline: DEADLINE,
                needs: &[NEVER],
                run: |_| Err(Failure::new("ran")),
            },
            // Run by other cases in a runner of their own, see `nested`.
            Case {
                name: "nested::hangs",
                clause: "it never ends",
                // Enough for its subject to serve, which is in its account.
                deadline: Duration::from_secs(20),
                needs: &[NESTED],
                run: |case| {
                    start(case, &Scenario::new())?;
                    loop {
                        std::thread::park();
                    }
                },
            },
            Case {
                name: "nested::waits",
                clause: "it ends with its runner",
                deadline: DEADLINE,
                needs: &[NESTED],
                run: |case| {
                    let (pid, _) = start(case, &Scenario::new().with("orphan", true))?;
                    let orphan = case.wait_for_other(&[pid], "serving", SOON)?;
                    println!("subjects {pid} {}", orphan.pid.unwrap_or(0));
                    case.wait_for("never", DEADLINE).map(drop)
                },
            },
        ],
    )
    .main(server)
}

const NESTED: Need = Need {
    what: "to be run by another case",
    is_met: || std::env::var_os("HANDOVER_NESTED").is_some(),
};

/// The subject: answers on a port of its own until it is told otherwise.
fn server(generation: &Generation) -> Result<(), Failure> {
    let listener = TcpListener::bind("127.0.0.1:0").doing("binding")?;
    let address = listener.local_addr().doing("binding")?;
    let teller = generation.clone();
    generation.on_command(move |command| match command.name.as_str() {
        "echo" => teller.tell("echo", &[("text", &command.get("text").unwrap_or_default())]),
        "exit" => std::process::exit(7),
        _ => {}
    });
    if generation.scenario().is_set("orphan") && std::env::var_os("CHILD").is_none() {
        let mut child = Process::new(std::env::current_exe().doing("finding the program")?);
        child.env("CHILD", "1").stdin(Stdio::null()).spawn().doing("starting a child")?;
    }
    generation.tell("serving", &[("address", &address)]);
    for connection in listener.incoming() {
        let connection = connection.doing("accepting")?;
        std::thread::spawn(move || http::serve_blocking(connection, || false));
    }
    Ok(())
}

fn start(case: &Context, scenario: &Scenario) -> Result<(u32, SocketAddr), Failure> {
    case.set_scenario(scenario)?;
    let pid = case.subject().start()?.pid();
    let event = case.wait_for_from(pid, "serving", SOON)?;
    Ok((pid, event.get("address").unwrap_or_default().parse()?))
}

fn clients_are_served(case: &Context) -> Result<(), Failure> {
    let (pid, address) = start(case, &Scenario::new())?;
    let load = Load::builder(address)
        .fresh(300.0)
        .kept(4, Duration::ZERO..Duration::from_millis(5))
        .kept_post(2, Duration::ZERO..Duration::from_millis(5), 16)
        .slow(2, Duration::from_millis(100))
        .upload(1, 100_000, Duration::from_millis(200))
        .ping(1, Duration::from_millis(20));
    let load = case.start_load(load)?;
    load.wait_until(SOON, |report| report.groups.iter().all(|group| group.ok >= 3))?;
    load.wait_for_answers(500, SOON)?;
    let report = load.stop();
    case.nothing_lost(&report)?;
    ensure!(report.serving() == Some(pid), "{report}");
    ensure!(report.pids.len() == 1, "{report}");
    Ok(())
}

fn a_kill_is_noticed(case: &Context) -> Result<(), Failure> {
    let (pid, address) = start(case, &Scenario::new())?;
    let load = case.start_load(Load::builder(address).fresh(300.0))?;
    load.wait_for_answers(50, SOON)?;
    case.signal(pid, Signal::KILL)?;
    load.wait_until(SOON, |report| report.groups[0].lost.refused > 10)?;
    let report = load.stop();
    ensure!(case.nothing_lost(&report).is_err(), "nothing was lost:\n{report}");
    Ok(())
}

fn a_command(case: &Context) -> Result<(), Failure> {
    let (pid, _) = start(case, &Scenario::new())?;
    case.command(pid, "echo", &[("text", "a b=c")])?;
    let echo = case.wait_for_from(pid, "echo", SOON)?;
    ensure!(echo.get("text") == Some("a b=c"), "{echo}");
    Ok(())
}

fn an_exit(case: &Context) -> Result<(), Failure> {
    let (pid, _) = start(case, &Scenario::new())?;
    case.command(pid, "exit", &[])?;
    let exit = case.wait_exit(pid, SOON)?;
    ensure!(exit == Some(Exit::Status(7)), "{exit:?}");

    let subject = case.subject().start()?;
    case.wait_for_from(subject.pid(), "serving", SOON)?;
    subject.signal(Signal::TERM)?;
    let exit = subject.wait_exit(SOON)?;
    ensure!(exit == Exit::Signal(15), "{exit}");
    case.wait_only(&[], SOON)
}

fn a_grandchild(case: &Context) -> Result<(), Failure> {
    let (pid, _) = start(case, &Scenario::new().with("orphan", true))?;
    let child = case.wait_for_other(&[pid], "serving", SOON)?.pid.unwrap_or(0);
    case.wait_only(&[pid, child], SOON)?;
    ensure!(hygiene::children(pid).len() == 1, "{:?}", hygiene::children(pid));

    case.signal(pid, Signal::KILL)?;
    case.wait_exit(pid, SOON)?;
    case.wait_only(&[child], SOON)?;
    let listed = hygiene::listed(child).ok_or_else(|| Failure::new("the orphan is gone"))?;
    ensure!(listed.parent == std::process::id(), "{listed}");

    // Being the runner's child now, it has a status.
    case.command(child, "exit", &[])?;
    let exit = case.wait_exit(child, SOON)?;
    ensure!(exit == Some(Exit::Status(7)), "{exit:?}");
    case.wait_only(&[], SOON)
}

fn broken(case: &Context) -> Result<(), Failure> {
    let program = case.program();
    let refused = |what: &str, errno: i32| {
        let failure = match case.subject().start() {
            Ok(subject) => return Err(Failure::new(format!("{what}: {} runs", subject.pid()))),
            Err(failure) => failure.to_string(),
        };
        ensure!(failure.contains(&format!("(os error {errno})")), "{what}: {failure}");
        Ok(())
    };
    // By their numbers: ETXTBSY, EACCES, ENOEXEC, ENOENT.
    let busy = program.make_busy()?;
    refused("busy", 26)?;
    drop(busy);
    start(case, &Scenario::new())?;
    program.make_not_executable()?;
    refused("not executable", 13)?;
    program.replace_with(b"\x7fELF garbage", 0o755)?;
    refused("garbage", 8)?;
    program.remove()?;
    refused("missing", 2)?;
    program.replace()?;
    program.make_directory()?;
    refused("directory", 13)?;

    let release = case.another_program("release")?;
    let link = case.folder().join("current");
    release.link_at(&link)?;
    let pid = case.subject().program(&link).start()?.pid();
    case.wait_for_from(pid, "serving", SOON).map(drop)
}

fn belongings(case: &Context) -> Result<(), Failure> {
    let (one, _) = start(case, &Scenario::new())?;
    let (two, _) = start(case, &Scenario::new())?;
    let (one, two) = (Belongings::of(one)?, Belongings::of(two)?);
    one.same_as(&two)?;
    one.nothing_is_inherited()?;
    ensure!(one.threads.len() == 2, "{:?}", one.threads);
    // stdin, stdout, stderr, the case's socket, the listener
    ensure!(one.descriptors.len() == 5, "{:#?}", one.descriptors);
    Ok(())
}

fn nested(name: &str) -> Result<Process, Failure> {
    let mut runner = Process::new(std::env::current_exe().doing("finding the test binary")?);
    runner.args([name, "--exact"]).env("HANDOVER_NESTED", "1").stdout(Stdio::piped());
    Ok(runner)
}

fn a_hang(case: &Context) -> Result<(), Failure> {
    let mut runner = nested("nested::hangs")?;
    runner.env("TMPDIR", case.folder());
    let runner = start_beside(runner.stderr(Stdio::null())).doing("starting a runner")?;
    let output = runner.wait_with_output().doing("running")?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(!output.status.success(), "{text}");
    for expected in ["hung", "promised: it never ends", "serving", "0 passed, 1 failed"] {
        ensure!(text.contains(expected), "no `{expected}` in:\n{text}");
    }
    no_folder_in(case)
}

/// Fails if a case has left its folder in the folder of this one.
fn no_folder_in(case: &Context) -> Result<(), Failure> {
    for entry in std::fs::read_dir(case.folder()).doing("looking for folders")? {
        let name = entry.doing("looking for folders")?.file_name();
        let name = name.to_string_lossy();
        ensure!(!name.starts_with("handover-"), "{name} is left");
    }
    Ok(())
}

fn lifeline(case: &Context) -> Result<(), Failure> {
    use std::io::{BufRead, BufReader};
    let mut runner = nested("nested::waits")?;
    runner.env("TMPDIR", case.folder());
    let mut runner = start_beside(&mut runner).doing("starting a runner")?;
    let output = runner.stdout.take().ok_or_else(|| Failure::new("no output"))?;
    let line = BufReader::new(output)
        .lines()
        .map_while(Result::ok)
        // The runner may have begun a line with the test's name.
        .find_map(|line| Some(line.split_once("subjects ")?.1.to_owned()))
        .ok_or_else(|| Failure::new("the runner named no subjects"))?;
    let mut subjects = Vec::new();
    for pid in line.split(' ') {
        subjects.push(handover_conformance::signal::Process::open(pid.parse()?)?);
    }
    runner.kill().doing("killing the runner")?;
    runner.wait().doing("waiting for the runner")?;
    for subject in &subjects {
        subject.wait_gone(SOON)?;
    }
    no_folder_in(case)
}
